"""Where episodes come from: a folder of images, a plugin, drawn waves, a list of tasks."""
