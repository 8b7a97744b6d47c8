"""Probes, as Kubernetes calls them: is the process alive, is it ready for work."""

from __future__ import annotations

from addrservice.tornado.base import BaseRequestHandler


class HealthRequestHandler(BaseRequestHandler):
    """``/healthz``, for liveness: depends on nothing but the process itself,
    as restarting it would mend nothing else."""

    is_probe = True

    async def get(self) -> None:
        """How long the process has been up, in milliseconds."""
        self.finish_json({'uptime': self.service.uptime_ms()})

    head = get


class ReadinessRequestHandler(BaseRequestHandler):
    """``/readiness``: whether requests should be sent here now."""

    is_probe = True

    async def get(self) -> None:
        """200 when ready; 503 while starting, draining, or without the store."""
        ready = await self.service.is_ready()
        if not ready:
            self.set_status(503)
            self.set_header('Retry-After', 1)
        self.finish_json({'ready': ready, 'uptime': self.service.uptime_ms()})

    head = get
