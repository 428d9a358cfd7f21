"""From a model folder to a repository on the Hub: what may go up, whether it loads elsewhere, and one commit of it."""
