"""Bridges to other libraries. Each needs the library it bridges to, and imports it when it is first used."""
