"""The mesh: one package per server, and `common` for what two of them share."""
