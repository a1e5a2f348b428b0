"""How much the images of a calibration matter: real ones, synthetic ones and noise."""
