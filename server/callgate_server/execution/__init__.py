"""Running one call in an ephemeral sandbox: the contract, the wire, and who watches the clock."""
