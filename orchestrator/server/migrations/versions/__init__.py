"""The steps, one file each, named after the version that they lead to."""
