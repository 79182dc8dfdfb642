"""Here so that the kits beside it can be imported from every folder below."""
