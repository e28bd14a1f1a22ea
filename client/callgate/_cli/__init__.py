"""The parts of the command line: settings, arguments, the screen, and saving what tools leave behind."""
