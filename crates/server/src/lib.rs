//! nexaquant-server.
