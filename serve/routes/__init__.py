"""One file per wire format; each only translates to and from `serve.service`."""
