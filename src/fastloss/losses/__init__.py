"""Losses, a file per family; `fastloss` itself has the public names."""
