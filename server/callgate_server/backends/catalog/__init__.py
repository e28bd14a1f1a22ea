"""The catalog on disk: manifests beside the tools of each image, and the lock that pins them. PyYAML lives here."""
