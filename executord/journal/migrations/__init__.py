"""The journal's schema, one numbered step a file. A step that was released is never edited."""
