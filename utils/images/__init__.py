"""From a folder of image files to one packed array of pixels."""
