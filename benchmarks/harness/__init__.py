"""What the commands are made of: servers, clients, requests, sounds, options and the results they write."""
