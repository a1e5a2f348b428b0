"""A segmenter, trained on shapes, whose int8 calibration from unlabelled images is measured."""
