"""HashiCorp Vault: logins, the connection, one field of a secret; imports the rest of `blocks`."""
