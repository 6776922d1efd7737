"""The datasets of the field that are fetched or drawn, one file each."""
