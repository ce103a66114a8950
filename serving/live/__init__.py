"""The live page: what the server shows a person, and the feed behind it. Nothing here decides anything."""
