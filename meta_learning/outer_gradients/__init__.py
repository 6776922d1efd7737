"""Ways from the inner steps to what the meta-update follows, one per file: values of the key `outer_update`."""
