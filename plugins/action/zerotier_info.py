# SPDX-FileCopyrightText: thinkube.infra contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one action plugin under the module's name: see meta/runtime.yml."""

from ansible_collections.thinkube.infra.plugins.action.module import ActionModule  # noqa: F401
