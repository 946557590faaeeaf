"""One lifetime, and many at once: pure functions, compiled and spread over devices."""
