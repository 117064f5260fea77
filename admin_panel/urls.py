"""The panel's addresses. Everything but signing in and the polled status is for signed-in staff."""

from django.urls import URLPattern, path

from admin_panel.pages import View, signed_in
from admin_panel.views import account, applications, history, keys, queues, routes, services, shell, start, versions

app_name = "panel"


def _page(route: str, view: View, name: str = "") -> URLPattern:
    return path(route, signed_in(view), name=name or view.__name__)


urlpatterns = [
    path("login", account.sign_in, name="login"),
    path("logout", account.sign_out, name="logout"),
    path("status", shell.status, name="status"),
    _page("", start.start),
    _page("suggestions/<slug:kind>", shell.suggestions),
    _page("services", services.services),
    _page("services/new", services.service_new),
    _page("services/<slug:pk>", services.service),
    _page("services/<slug:pk>/edit", services.service_edit),
    _page("services/<slug:pk>/switch", services.service_switch),
    _page("services/<slug:pk>/weights", services.service_weights),
    _page("services/<slug:pk>/delete", services.service_delete),
    _page("services/<slug:pk>/versions/new", versions.version_new),
    _page("versions/<slug:pk>/edit", versions.version_edit),
    _page("versions/<slug:pk>/switch", versions.version_switch),
    _page("versions/<slug:pk>/delete", versions.version_delete),
    _page("versions/<slug:pk>/targets/new", versions.target_new),
    _page("targets/<slug:pk>/edit", versions.target_edit),
    _page("targets/<slug:pk>/delete", versions.target_delete),
    _page("routes", routes.routes),
    _page("routes/new", routes.route_new),
    _page("routes/preview", routes.route_preview),
    _page("routes/<slug:pk>", routes.route),
    _page("routes/<slug:pk>/edit", routes.route_edit),
    _page("routes/<slug:pk>/switch", routes.route_switch),
    _page("routes/<slug:pk>/delete", routes.route_delete),
    _page("applications", applications.applications),
    _page("applications/new", applications.application_new),
    _page("applications/<slug:pk>", applications.application),
    _page("applications/<slug:pk>/edit", applications.application_edit),
    _page("applications/<slug:pk>/switch", applications.application_switch),
    _page("applications/<slug:pk>/delete", applications.application_delete),
    _page("applications/<slug:pk>/whitelist/new", applications.entry_new),
    _page("whitelist/<slug:pk>/edit", applications.entry_edit),
    _page("whitelist/<slug:pk>/delete", applications.entry_delete),
    _page("api-keys", keys.keys),
    _page("api-keys/new", keys.key_new),
    _page("api-keys/whose", keys.key_whose),
    _page("api-keys/<slug:pk>", keys.key),
    _page("api-keys/<slug:pk>/suspend", keys.key_suspend),
    _page("api-keys/<slug:pk>/activate", keys.key_activate),
    _page("api-keys/<slug:pk>/revoke", keys.key_revoke),
    _page("queue-routes", queues.queue_routes),
    _page("queue-routes/<slug:pk>", queues.queue_route),
    _page("tasks", queues.tasks),
    _page("tasks/<slug:pk>", queues.task),
    _page("history", history.history),
    _page("history/<int:number>", history.revision),
    _page("history/<int:number>/acknowledged", shell.acknowledged),
]
