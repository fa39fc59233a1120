"""Data: the manifest, the readers that make it, safe image decoding, transforms, samplers and loaders."""
