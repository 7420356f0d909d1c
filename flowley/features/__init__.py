"""Features of clips: frozen encoders, the encoding step, feature files and their specification."""
