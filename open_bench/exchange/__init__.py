"""Exchange: results sent, received and merged; stored seeds run again."""
