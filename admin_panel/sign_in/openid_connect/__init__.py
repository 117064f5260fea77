"""An OpenID provider to sign in with: allauth's flow, with a nonce and with every check of the ID token."""
