"""Running plans on an opened bundle: caches, one step at a time, the diffusers drop-in."""
