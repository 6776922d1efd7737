"""A page on which one draws examples and watches the network learn them."""
