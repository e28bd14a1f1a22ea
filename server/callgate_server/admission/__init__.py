"""May this call run? Who asks, do the arguments fit, does policy allow it, is there room."""
