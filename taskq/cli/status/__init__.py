"""`taskq status`: what the fleet is doing. It has to be quick, as people call it when something is wrong."""
