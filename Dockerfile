# The web demo of a captioner, without what training needs and without CUDA
#   docker build -t caption-demo .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/my_model:/model:ro" caption-demo
FROM python:3.12-slim
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
 && pip install --no-cache-dir numpy pillow nltk safetensors 'fastcore<2' tqdm fastapi uvicorn python-multipart
COPY setup.py settings.ini README.md /src/
COPY caption_fastai /src/caption_fastai
RUN pip install --no-cache-dir --no-deps /src && rm -rf /src && useradd --no-create-home demo
USER demo
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["caption_serve", "/model", "--host", "0.0.0.0"]
