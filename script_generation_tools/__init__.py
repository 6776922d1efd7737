"""From templates and values to configs, and from configs to scripts."""
