"""The built-in example, which `dreamshard init --example digits` sets up."""
