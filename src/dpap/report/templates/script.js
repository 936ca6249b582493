for (const figure of document.querySelectorAll('figure[data-series]')) {
  const series = JSON.parse(figure.dataset.series), values = [...figure.querySelectorAll('.value')];
  const last = values.map(v => v.textContent), at = figure.querySelector('.at');
  for (const svg of figure.querySelectorAll('svg')) {
    const {left, right, end} = Object.fromEntries(Object.entries(svg.dataset).map(([k, v]) => [k, +v]));
    const cross = svg.querySelector('.cross');
    const show = event => {
      const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      const place = Math.min(Math.max((x - left) / (right - left), 0), 1) * end;
      cross.setAttribute('transform', `translate(${place / end * (right - left)})`);
      cross.style.opacity = 1;
      at.textContent = figure.dataset.axis + ' ' + (+place.toPrecision(3));
      series.forEach((s, k) => {
        let best = -1;
        s.x.forEach((p, j) => {
          if (s.hold ? p <= place + 1e-9 : best < 0 || Math.abs(p - place) < Math.abs(s.x[best] - place)) best = j;
        });
        values[k].textContent = best < 0 ? s.y[0] : s.y[best];
      });
    };
    svg.addEventListener('pointermove', show);
    svg.addEventListener('pointerdown', show);
    svg.addEventListener('pointerleave', () => {
      cross.style.opacity = 0;
      at.textContent = '';
      last.forEach((text, k) => values[k].textContent = text);
    });
  }
}
