"""The forms in which people have images: class folders, arrays, pickles, lists."""
