"""One file a stage; main dispatches on config.stage."""
