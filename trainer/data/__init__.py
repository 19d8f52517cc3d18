"""Images and labels: finding pairs, reading them, cutting and augmenting crops."""
