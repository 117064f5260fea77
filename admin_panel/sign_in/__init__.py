"""How administrators get into the panel: django-allauth's flows, with our rules on who, from where and how long."""
