"""The processes that train together: their shares of the work, and of the weights."""
