"""Model folders as they are read, from Tandem or from strangers: `checking` first, then `loading`."""
