"""What the server tells about itself: metrics, history, logs, traces, and events for others."""
