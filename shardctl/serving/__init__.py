"""HTTP servers within this process: their sockets, their bounds, their signals. All HTTP listeners are made here."""
