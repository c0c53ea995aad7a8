"""Where units are performed: in this process, in processes beside it, on a Ray cluster."""
