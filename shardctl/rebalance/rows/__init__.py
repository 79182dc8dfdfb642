"""The rows of slots: what their tables look like, and how they come from one database to another and are known to be whole."""
