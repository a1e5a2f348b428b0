"""What is measured after the fact: accuracy on real images, and how varied the images are."""
