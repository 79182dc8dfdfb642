"""HTTP servers within this process: their sockets, their bounds, their signals. All that listen for HTTP are made here."""
