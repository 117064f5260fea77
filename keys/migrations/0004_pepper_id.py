"""Keys made before rows said which pepper their digest is of: the present one, since requests were checked by it."""

from typing import Any

from django.db import migrations

from keys.pepper import pepper_id


def stamp(apps: Any, schema_editor: Any) -> None:
    keys = apps.get_model("keys", "ApiKey").objects.using(schema_editor.connection.alias)
    keys.filter(pepper_id="").update(pepper_id=pepper_id())


class Migration(migrations.Migration):
    dependencies = [("keys", "0003_rotation")]
    operations = [migrations.RunPython(stamp, migrations.RunPython.noop)]
