"""The only package that talks to a Hub: choose it, resolve names, download, publish."""
