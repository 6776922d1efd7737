"""A config's meta-gradient against finite differences and torch.optim."""
