"""The durable record of calls: claims, states and the audit chain. The store is a backend."""
