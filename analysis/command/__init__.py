"""What all commands have in common: arguments, sessions, plugins, manners, manifests."""
