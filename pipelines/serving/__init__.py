"""An HTTP server that answers with the predictions of a result."""
